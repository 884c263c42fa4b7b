"""Training a network from folders of photographs."""
