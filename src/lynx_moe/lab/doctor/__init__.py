"""`lynx-moe doctor`: will it pay on this machine, from where, to where, and how much."""
