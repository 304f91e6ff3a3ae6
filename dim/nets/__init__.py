"""Networks: students, generators, discriminators."""
