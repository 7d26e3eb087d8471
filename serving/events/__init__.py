"""The durable log of what happened: stores, its writer, and its way to the night."""
