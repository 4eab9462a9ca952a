"""The augmenters, one module each: `services.cleaning.engine.registry` finds them by the name of the module."""
