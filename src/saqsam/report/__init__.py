"""What happened in a quantization and what came of it, for people: as one page, as a table, as plain values."""
