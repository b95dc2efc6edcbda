"""All stages in a row, from one TOML file."""
