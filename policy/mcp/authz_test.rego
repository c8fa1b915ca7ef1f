# `opa test policy`, or `cargo test -p authz-service`.
package mcp.authz_test

import data.mcp.authz
import rego.v1

call := {
	"caller": "agent-alpha",
	"tool": "echo",
	"poca_verified": true,
	"trace_id": "0af7651916cd43dd8448eb211c80319c",
	"schema_id": null,
}

with_changes(changes) := object.union(call, changes)

test_a_proven_call_of_echo_is_allowed if {
	authz.allow with input as call
	authz.reason == set() with input as call
}

test_echo_may_be_called_under_any_contract if {
	authz.allow with input as with_changes({"schema_id": "echo.v1"})
}

test_an_unproven_call_is_denied if {
	not authz.allow with input as with_changes({"poca_verified": false})
	not authz.allow with input as object.remove(call, ["poca_verified"])
	not authz.allow with input as with_changes({"poca_verified": "true"})
	authz.reason == {"the call's context is not proven"} with input as with_changes({"poca_verified": false})
}

test_another_tool_is_denied if {
	not authz.allow with input as with_changes({"tool": "shell"})
	not authz.allow with input as object.remove(call, ["tool"])
	authz.reason == {"nobody may call this tool"} with input as with_changes({"tool": "shell"})
}

test_todos_is_called_only_under_its_contract if {
	authz.allow with input as with_changes({"tool": "todos", "schema_id": "todos.v1"})
	not authz.allow with input as with_changes({"tool": "todos"})
	not authz.allow with input as with_changes({"tool": "todos", "schema_id": "echo.v1"})
	not authz.allow with input as object.remove(with_changes({"tool": "todos"}), ["schema_id"])
}

test_nothing_is_denied if {
	not authz.allow with input as {}
}
