"""How a profile is shown: findings, verdict, pictures, the page."""
