"""Settings: pydantic models, the only definition of every field, and the errors of people who fill them in."""
