"""The command: each verb parses, calls a public function, and shows what it returned."""
