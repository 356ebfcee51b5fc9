"""Image encoders behind one contract, and the road of weights into them."""
