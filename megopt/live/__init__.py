"""Edge service and device client: decisions carried out on real diffusion models over a real link."""
