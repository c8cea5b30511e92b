"""The same decisions, fast: one file per kernel. The plain-torch policy is the definition that a kernel must equal."""

# lynx's open alpha is this times beta / depth. By itself beta / depth would put the edge of the last bin just on the
# expert that gave the depth, and rounding would say on which side it lies: one answer an engine, layout and CPU.
EDGE = 1 + 2**-10
