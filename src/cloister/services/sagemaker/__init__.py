"""Amazon SageMaker: processing jobs and their tags.

processing_jobs   the five operations on a job
checks            what CreateProcessingJob refuses beyond the model
tags              AddTags, ListTags, DeleteTags
"""
