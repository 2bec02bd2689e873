"""Why a request, a job, a plan of a job is allowed or refused: the rules that decide, read and told.

Pure, like the rules themselves: a World and a question give steps (vpc.flow.Step), each with the resource and
rule that decided and, after a refusal, the smallest change as an AWS CLI command."""
