"""Many runs, one verdict."""
