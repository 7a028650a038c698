"""What a person sees: tables and progress on a terminal."""
