"""The schedule language: YAML with positions, frozen data, its JSON Schema."""
