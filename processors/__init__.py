"""What happens between a raw stream and a window: Specs, Stages and the chain they form."""
