import { ScrollArea, Table, Text } from '@mantine/core'
import { IconRoute } from '@tabler/icons-react'
import { useQuery } from '@tanstack/react-query'
import { kfp } from '../api'
import { ago, instant } from '../format'
import { Empty, PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'

const FIRST_PIPELINE = `kfp dsl compile --py pipeline.py --output pipeline.yaml
kfp --endpoint ${window.location.origin} pipeline create -p my-pipeline pipeline.yaml`

export function Pipelines() {
  const pipelines = useQuery({ queryKey: ['pipelines'], queryFn: kfp.pipelines, refetchInterval: 5000 })
  return (
    <>
      <PageTitle>Pipelines</PageTitle>
      {pipelines.error && <Problem error={pipelines.error} />}
      {pipelines.isPending && <Waiting />}
      {pipelines.data && pipelines.data.rows.length === 0 && (
        <Empty icon={<IconRoute size={36} stroke={1.3} />} title="No pipelines uploaded" command={FIRST_PIPELINE}>
          A run needs no upload. Upload a pipeline to keep its versions and to start runs of it by name.
        </Empty>
      )}
      {pipelines.data && pipelines.data.rows.length > 0 && (
        <ScrollArea className="surface">
          <Table verticalSpacing={9} horizontalSpacing="md" highlightOnHover miw={480}>
            <Table.Thead><Table.Tr><Table.Th>Pipeline</Table.Th><Table.Th w={160}>Created</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>
              {pipelines.data.rows.map((row) => (
                <Table.Tr key={row.pipeline_id} className="row" onClick={() => (window.location.hash = link.pipeline(row.pipeline_id))}>
                  <Table.Td>
                    <a href={link.pipeline(row.pipeline_id)}>{row.display_name}</a>
                    {row.description && <Text size="xs" c="dimmed" lineClamp={1}>{row.description}</Text>}
                  </Table.Td>
                  <Table.Td><Text size="sm" c="dimmed">{ago(instant(row.created_at))}</Text></Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </ScrollArea>
      )}
    </>
  )
}
