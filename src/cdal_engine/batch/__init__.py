"""Many inputs, one after another: each finished whole, each failure its own."""
