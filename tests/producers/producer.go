// producer BROKERS TOPIC FILE.csv: a stranger's producer in Go, with kafka-go and Protobuf written by hand.
package main

import (
	"context"
	"encoding/binary"
	"encoding/csv"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go"
	pb "google.golang.org/protobuf/encoding/protowire"
)

func check[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func text(out []byte, field pb.Number, value string) []byte {
	return pb.AppendString(pb.AppendTag(out, field, pb.BytesType), value)
}

func number(out []byte, field pb.Number, value uint64) []byte {
	return pb.AppendVarint(pb.AppendTag(out, field, pb.VarintType), value)
}

func fixed(out []byte, field pb.Number, value int64) []byte {
	return pb.AppendFixed64(pb.AppendTag(out, field, pb.Fixed64Type), uint64(value))
}

func main() {
	brokers, topic, file := os.Args[1], os.Args[2], os.Args[3]
	rows := check(csv.NewReader(check(os.Open(file))).ReadAll())
	channels, rows := rows[0][1:], rows[1:]
	session := strings.TrimSuffix(filepath.Base(file), ".csv")
	writer := &kafka.Writer{
		Addr: kafka.TCP(strings.Split(brokers, ",")...), Topic: topic,
		Balancer: kafka.Murmur2Balancer{}, RequiredAcks: kafka.RequireAll, BatchTimeout: 1e6,
	}
	var messages []kafka.Message
	for first := 0; first < len(rows); first += 5 {
		part := rows[first:min(first+5, len(rows))]
		var data []byte
		for _, row := range part {
			for _, cell := range row[1:] {
				value := float32(check(strconv.ParseFloat(cell, 32)))
				data = binary.LittleEndian.AppendUint32(data, math.Float32bits(value))
			}
		}
		chunk := fixed(nil, 2, int64(first))
		chunk = text(text(chunk, 3, session), 4, "imu")
		chunk = fixed(chunk, 6, check(strconv.ParseInt(rows[0][0], 10, 64)))
		chunk = number(number(chunk, 7, 10), 8, 1)
		for _, channel := range channels {
			chunk = text(chunk, 9, channel)
		}
		chunk = number(text(chunk, 11, "float32"), 12, uint64(len(channels)))
		if first+len(part) == len(rows) {
			chunk = number(chunk, 16, 1)
		}
		chunk = pb.AppendBytes(pb.AppendTag(chunk, 30, pb.BytesType), data)
		messages = append(messages, kafka.Message{Key: []byte(session), Value: chunk})
	}
	if err := writer.WriteMessages(context.Background(), messages...); err != nil {
		panic(err)
	}
	if err := writer.Close(); err != nil {
		panic(err)
	}
}
