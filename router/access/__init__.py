"""Who is thrown out, and who hears of it."""
