"""Fine-tuned networks applied to scans."""
