"""What the features of a frozen encoder tell, without a training schedule."""
