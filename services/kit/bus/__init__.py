"""Events between services: the declared topics, the port, and its implementation on Kafka."""
