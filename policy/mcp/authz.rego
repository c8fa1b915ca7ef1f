# Who may call which tool, beside what permissions say: a call that gets here has an active signed
# permission for its tool. Input: caller, tool, poca_verified, trace_id, schema_id.
package mcp.authz

import rego.v1

default allow := false

allow if count(reason) == 0

# Told to the operator, never to the caller.
reason contains "the call's context is not proven" if not input.poca_verified == true

reason contains "nobody may call this tool" if not callable[input.tool]

# What changes something is called only with a payload that was held against its contract.
reason contains "this tool is called only under its contract" if {
	contract := callable[input.tool]
	contract != ""
	not input.schema_id == contract
}

# Tools that may be called, each with the contract that it is called under, if any.
callable := {
	"echo": "",
	"todos": "todos.v1",
}
