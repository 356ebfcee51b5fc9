"""Numbers of voxels in files: where they are, how they are packed, and the order of their axes."""
