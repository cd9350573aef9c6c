import { Stack } from '@mantine/core'
import { useQueries } from '@tanstack/react-query'
import { kfp, type TaskView } from '../api'
import { Empty } from '../Parts'
import { ArtifactCard, isResult } from './ArtifactCard'

/** Everything of a run that is meant to be looked at: metrics, curves, reports. */
export function Results({ tasks }: { tasks: TaskView[] }) {
  const links = tasks
    .filter((task) => task.kind !== 'dag' && task.kind !== 'loop' && task.kind !== 'root')
    .flatMap((task) =>
      Object.entries(task.outputs ?? {}).flatMap(([name, { artifact_ids }]) => artifact_ids.map((id) => ({ id, name, from: task.display_name }))),
    )
  const found = useQueries({
    queries: links.map(({ id }) => ({ queryKey: ['artifact', id], queryFn: () => kfp.artifact(id), staleTime: Infinity })),
  })
  const shown = links.flatMap((link, index) => {
    const artifact = found[index]?.data
    return artifact && isResult(artifact) ? [{ ...link, artifact }] : []
  })
  if (shown.length === 0 && found.every((query) => !query.isPending)) {
    return (
      <Empty title="Nothing to look at yet" command={`@dsl.component
def evaluate(metrics: Output[Metrics]):
    metrics.log_metric("accuracy", 0.93)`}>
        Steps that write Metrics, ClassificationMetrics, HTML or Markdown artifacts show them here.
      </Empty>
    )
  }
  return <Stack gap="md" maw={980}>{shown.map(({ id, name, from, artifact }) => <ArtifactCard key={id} name={name} from={from} artifact={artifact} />)}</Stack>
}
