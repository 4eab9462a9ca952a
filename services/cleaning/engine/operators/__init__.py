"""The operators, a module for each family; `services.cleaning.engine.registry` knows their names."""
