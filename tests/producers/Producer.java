// java -cp kafka-clients.jar:… Producer.java BROKERS TOPIC FILE.csv: a stranger's producer, with Protobuf written by hand.

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Producer {
    public static void main(String[] args) throws Exception {
        Path file = Path.of(args[2]);
        List<String[]> rows = Files.readAllLines(file).stream().map(line -> line.split(",")).toList();
        String[] head = rows.get(0);
        String session = file.getFileName().toString().replace(".csv", "");
        Properties settings = new Properties();
        settings.put("bootstrap.servers", args[0]);
        settings.put("linger.ms", "5");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            for (int first = 1; first < rows.size(); first += 5) {
                List<String[]> part = rows.subList(first, Math.min(first + 5, rows.size()));
                ByteBuffer data = ByteBuffer.allocate(4 * (head.length - 1) * part.size()).order(ByteOrder.LITTLE_ENDIAN);
                for (String[] row : part) for (int i = 1; i < row.length; i++) data.putFloat(Float.parseFloat(row[i]));
                Message chunk = new Message().fixed(2, first - 1).text(3, session).text(4, "imu");
                chunk.fixed(6, Long.parseLong(rows.get(1)[0])).number(7, 10).number(8, 1);
                for (int i = 1; i < head.length; i++) chunk.text(9, head[i]);
                chunk.text(11, "float32").number(12, head.length - 1);
                if (first + part.size() == rows.size()) chunk.number(16, 1);
                chunk.bytes(30, data.array());
                producer.send(new ProducerRecord<>(args[1], session, chunk.out.toByteArray()));
            }
        }
    }
}

class Message {
    final ByteArrayOutputStream out = new ByteArrayOutputStream();

    void varint(long value) {
        for (; value > 0x7F; value >>>= 7) out.write((int) (value & 0x7F | 0x80));
        out.write((int) value);
    }

    Message number(int field, long value) {
        varint(field << 3);
        varint(value);
        return this;
    }

    Message fixed(int field, long value) {
        varint(field << 3 | 1);
        out.writeBytes(ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array());
        return this;
    }

    Message bytes(int field, byte[] value) {
        varint(field << 3 | 2);
        varint(value.length);
        out.writeBytes(value);
        return this;
    }

    Message text(int field, String value) {
        return bytes(field, value.getBytes(StandardCharsets.UTF_8));
    }
}
