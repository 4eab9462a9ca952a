"""Events between services: what is declared about topics, the port, and Kafka behind it."""
