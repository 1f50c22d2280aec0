"""Kafka: topics, clients, records."""
