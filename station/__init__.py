"""The inspection station: composes drivers and models."""
