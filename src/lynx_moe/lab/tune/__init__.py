"""Which setting is the cheapest that holds a bound on the KL, at each batch size, on the engine that will serve."""
