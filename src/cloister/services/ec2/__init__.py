"""Amazon EC2, as far as a VPC goes: one file per resource.

A resource is declared once as a `describe.Resource` (its ids, filters and shape); its operations are
decorated functions below it. To add an operation, touch the resource's file and its test."""
