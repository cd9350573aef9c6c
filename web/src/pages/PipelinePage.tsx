import { Box, Select, Text } from '@mantine/core'
import { useQuery } from '@tanstack/react-query'
import { kfp } from '../api'
import Graph from '../graph/Graph'
import { PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'

const nothing = () => undefined

/** One pipeline: its versions and the graph of the chosen one. */
export default function PipelinePage({ id, version }: { id: string; version?: string }) {
  const pipeline = useQuery({ queryKey: ['pipeline', id], queryFn: () => kfp.pipeline(id) })
  const versions = useQuery({ queryKey: ['pipeline-versions', id], queryFn: () => kfp.versions(id) })
  const shown = versions.data?.rows.find((row) => row.pipeline_version_id === version) ?? versions.data?.rows[0]
  const error = pipeline.error ?? versions.error
  return (
    <>
      <PageTitle
        above={<a className="plain" href="#/pipelines">Pipelines</a>}
        aside={shown && (
          <Select
            size="sm"
            w={260}
            aria-label="Version"
            allowDeselect={false}
            value={shown.pipeline_version_id}
            data={versions.data?.rows.map((row) => ({ value: row.pipeline_version_id, label: row.display_name }))}
            onChange={(value) => value && (window.location.hash = link.pipeline(id, value))}
          />
        )}
      >
        {pipeline.data?.display_name ?? 'Pipeline'}
      </PageTitle>
      {error && <Problem error={error} />}
      {pipeline.data?.description && <Text c="dimmed" mb="md">{pipeline.data.description}</Text>}
      {versions.isPending && <Waiting />}
      {shown?.pipeline_spec && (
        <Box className="surface" pos="relative" h="calc(100vh - 190px)" mih={360}>
          <Graph spec={shown.pipeline_spec} tasks={[]} onSelect={nothing} />
        </Box>
      )}
    </>
  )
}
