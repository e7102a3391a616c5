"""Published studies fitted again from their own data: one module a study, each with `reproduce(folder)`."""
