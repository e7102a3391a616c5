"""The natural scaling law N ~ D^gamma: how many parameters so many tokens want, estimated in three ways."""
