"""In every step: rows, requests, the plan that decides, the guard's samples."""
