"""Small stateful modules that encoders, objectives and heads share."""
