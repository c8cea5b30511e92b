"""`lynx-moe record` and `replay`: router logits kept in a file, and policies decided on them without the model."""
