"""Mathematics: torch and numpy. Knows no disk, web or queue."""
