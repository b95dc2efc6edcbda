"""TensorRT plans: shapes, profiles, the builder, the check."""
