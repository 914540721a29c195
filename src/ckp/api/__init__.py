"""The resource types and the agent's messages. CRDs and schemas are generated from here or checked against it."""
