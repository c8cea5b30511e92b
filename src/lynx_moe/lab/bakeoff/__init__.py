"""`lynx-moe bakeoff`: all policies over their knobs, on common ground. Knobs are chosen on one part of the data and
judged on another."""
