import { Anchor, Button, Group, ScrollArea, SegmentedControl, Table, Text } from '@mantine/core'
import { IconPlayerPlay } from '@tabler/icons-react'
import { keepPreviousData, useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { kfp, type RunMessage } from '../api'
import { ago, between, headline, instant } from '../format'
import { useNow, useVisible } from '../live'
import { Empty, PageTitle, Problem, Waiting } from '../Parts'
import { link, setQuery, usePlace } from '../router'
import { StateBadge, isActive } from '../State'

export const FIRST_RUN = `pip install kfp
python - <<'END'
from kfp import Client, dsl

@dsl.component
def hello(name: str) -> str:
    return f"Hello, {name}!"

@dsl.pipeline
def first(name: str = "sailor"):
    hello(name=name)

Client(host="${window.location.origin}").create_run_from_pipeline_func(first)
END`

export function useExperimentNames(): Map<string, string> {
  const { data } = useQuery({ queryKey: ['experiments'], queryFn: kfp.experiments, staleTime: 10_000 })
  return new Map(data?.rows.map((row) => [row.experiment_id, row.display_name]))
}

export function RunTable({ runs, showExperiment = true }: { runs: RunMessage[]; showExperiment?: boolean }) {
  const experiments = useExperimentNames()
  const now = useNow(true)
  return (
    <ScrollArea className="surface">
      <Table verticalSpacing={9} horizontalSpacing="md" highlightOnHover miw={640} data-testid="runs">
        <Table.Thead>
          <Table.Tr>
            <Table.Th miw={230}>Run</Table.Th>
            <Table.Th w={150}>State</Table.Th>
            {showExperiment && <Table.Th w={170}>Experiment</Table.Th>}
            <Table.Th w={110}>Duration</Table.Th>
            <Table.Th w={140}>Started</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {runs.map((run) => (
            <Table.Tr key={run.run_id} className="row" onClick={(event) => {
              if (!(event.target as Element).closest('a')) window.location.hash = link.run(run.run_id)
            }}>
              <Table.Td>
                <a href={link.run(run.run_id)}>{run.display_name}</a>
                {run.error?.message && (
                  <Text size="xs" c="dimmed" lineClamp={1} title={headline(run.error.message)}>{headline(run.error.message)}</Text>
                )}
              </Table.Td>
              <Table.Td><StateBadge state={run.state} /></Table.Td>
              {showExperiment && (
                <Table.Td>
                  <Anchor size="sm" fw={400} href={link.experiment(run.experiment_id)}>{experiments.get(run.experiment_id) ?? '–'}</Anchor>
                </Table.Td>
              )}
              <Table.Td style={{ fontVariantNumeric: 'tabular-nums' }}>{between(run.created_at, run.finished_at, now)}</Table.Td>
              <Table.Td><Text size="sm" c="dimmed" title={new Date(run.created_at).toLocaleString()}>{ago(instant(run.created_at), now)}</Text></Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  )
}

const FILTERS = [
  { value: '', label: 'All' },
  { value: 'RUNNING', label: 'Running' },
  { value: 'SUCCEEDED', label: 'Succeeded' },
  { value: 'FAILED', label: 'Failed' },
]

/** All runs, or those of one experiment. */
export function Runs({ experiment }: { experiment?: string }) {
  const { query } = usePlace()
  const state = query.get('state') ?? ''
  const [tokens, setTokens] = useState<string[]>([])
  const token = tokens.at(-1) ?? ''
  const visible = useVisible()
  const runs = useQuery({
    queryKey: ['runs', experiment, state, token],
    queryFn: () => kfp.runs({ experiment, state, token }),
    placeholderData: keepPreviousData,
    refetchInterval: ({ state: last }) => {
      if (!visible) return false
      return last.data?.rows.some((run) => isActive(run.state)) ? 1000 : 5000
    },
  })
  const shown = useQuery({
    queryKey: ['experiment', experiment],
    queryFn: () => kfp.experiment(experiment!),
    enabled: experiment !== undefined,
  })
  return (
    <>
      <PageTitle
        above={experiment && <><a className="plain" href="#/runs">Runs</a> / Experiment</>}
        aside={
          <SegmentedControl
            size="xs"
            data={FILTERS}
            value={state}
            aria-label="State"
            onChange={(value) => {
              setTokens([])
              setQuery({ state: value })
            }}
          />
        }
      >
        {experiment ? (shown.data?.display_name ?? 'Experiment') : 'Runs'}
      </PageTitle>
      {shown.data?.description && <Text c="dimmed" mb="md">{shown.data.description}</Text>}
      {(runs.error ?? shown.error) && <Problem error={(runs.error ?? shown.error)!} />}
      {runs.isPending && <Waiting />}
      {runs.data && runs.data.rows.length === 0 && (state
        ? <Empty title="No run is in this state">Choose All to see the others.</Empty>
        : (
          <Empty icon={<IconPlayerPlay size={36} stroke={1.3} />} title="No runs yet" command={FIRST_RUN}>
            A run is one execution of a pipeline. Start your first one from any Python with the KFP SDK; it shows up here at once.
          </Empty>
        ))}
      {runs.data && runs.data.rows.length > 0 && <RunTable runs={runs.data.rows} showExperiment={!experiment} />}
      {runs.data && (tokens.length > 0 || runs.data.next) && (
        <Group justify="space-between" mt="sm">
          <Text size="sm" c="dimmed">{runs.data.total} runs</Text>
          <Group gap="xs">
            <Button size="xs" variant="default" disabled={tokens.length === 0} onClick={() => setTokens(tokens.slice(0, -1))}>Newer</Button>
            <Button size="xs" variant="default" disabled={!runs.data.next} onClick={() => setTokens([...tokens, runs.data.next])}>Older</Button>
          </Group>
        </Group>
      )}
    </>
  )
}
