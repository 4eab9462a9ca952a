"""Starts the real Kafka, Elasticsearch and Triton and Tidemill's services as child processes on one machine.

No root, no Java, no container engine: the parts come from packages (`infra.stack.assets`). One supervisor
process per state folder (`infra.stack.supervisor`) starts, watches and stops them; other programs use
`infra.stack.client`. It knows the services by their module names only.
"""
