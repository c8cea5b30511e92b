"""In every step: whose rows may be remapped, and what the radix cache may keep of it."""
