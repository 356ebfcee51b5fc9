"""What people read: pages, charts and pictures."""
