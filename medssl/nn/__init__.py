"""Small modules with parameters that encoders, objectives and heads share."""
