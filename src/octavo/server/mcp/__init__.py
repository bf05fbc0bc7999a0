"""octavo as a client of MCP servers. The package `mcp` is imported with the first session."""
