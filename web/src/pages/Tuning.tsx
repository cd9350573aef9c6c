import { Box, Grid, Group, Progress, ScrollArea, Stack, Table, Text, Title } from '@mantine/core'
import { IconAdjustmentsHorizontal } from '@tabler/icons-react'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { ui, type Search, type Trial } from '../api'
import { ago, instant, number, seconds } from '../format'
import { useNow } from '../live'
import { Empty, Fact, PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'
import { StateBadge, isActive } from '../State'

const FIRST_SEARCH = `shallop apply -f - <<'END'
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: parabola}
spec:
  objective: {type: minimize, objectiveMetricName: loss}
  algorithm: {algorithmName: tpe}
  maxTrialCount: 12
  parallelTrialCount: 2
  parameters:
  - {name: x, parameterType: double, feasibleSpace: {min: "-5", max: "5"}}
  trialTemplate:
    primaryContainerName: main
    trialParameters: [{name: x, reference: x}]
    trialSpec:
      apiVersion: batch/v1
      kind: Job
      spec:
        template:
          spec:
            restartPolicy: Never
            containers:
            - name: main
              image: python:3.11
              command: [python3, -c, "x = float('\${trialParameters.x}'); print(f'loss={(x - 2) ** 2}')"]
END`

/** A share of all trials, or of those so far where no number was set. */
function Trials({ search }: { search: Search }) {
  const { total, running, failed, stopped, succeeded } = search.trials
  const all = Math.max(search.wanted ?? total, total, 1)
  return (
    <Box miw={150}>
      <Progress.Root size="sm" aria-label={`${total - running} of ${all} trials have ended`}>
        <Progress.Section value={(succeeded / all) * 100} color="green" />
        <Progress.Section value={(stopped / all) * 100} color="orange" />
        <Progress.Section value={(failed / all) * 100} color="red" />
        <Progress.Section value={(running / all) * 100} color="blue" striped animated />
      </Progress.Root>
      <Text size="xs" c="dimmed" mt={3}>
        {[`${succeeded} of ${all}`, running && `${running} running`, stopped && `${stopped} stopped early`, failed && `${failed} failed`].filter(Boolean).join(', ')}
      </Text>
    </Box>
  )
}

function assignments(parameters: Record<string, string>): string {
  return Object.entries(parameters).map(([name, value]) => `${name} ${short(value)}`).join(', ')
}

/** A value as it was suggested, with as many digits as help. */
function short(value: string): string {
  return value !== '' && Number.isFinite(Number(value)) ? number(Number(value)) : value
}

/** Experiments and OptimizationJobs. */
export function Tuning() {
  const searches = useQuery({ queryKey: ['searches'], queryFn: ui.searches, refetchInterval: 3000 })
  const rows = searches.data?.searches
  const now = useNow(rows?.some((row) => isActive(row.state)) ?? false)
  return (
    <>
      <PageTitle>Tuning</PageTitle>
      {searches.error && <Problem error={searches.error} />}
      {searches.isPending && <Waiting />}
      {rows && rows.length === 0 && (
        <Empty icon={<IconAdjustmentsHorizontal size={36} stroke={1.3} />} title="No search for parameters yet" command={FIRST_SEARCH}>
          Declare an Experiment: it tries values side by side, learns from what came out, and keeps every trial.
        </Empty>
      )}
      {rows && rows.length > 0 && (
        <ScrollArea className="surface">
          <Table verticalSpacing={9} horizontalSpacing="md" highlightOnHover miw={860} data-testid="searches">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Search</Table.Th><Table.Th w={156}>State</Table.Th><Table.Th w={150}>Algorithm</Table.Th><Table.Th w={210}>Trials</Table.Th><Table.Th>Best so far</Table.Th><Table.Th w={110}>Duration</Table.Th><Table.Th w={120}>Created</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {rows.map((row) => (
                <Table.Tr key={`${row.kind}/${row.namespace}/${row.name}`} className="row" onClick={() => (window.location.hash = link.search(row.kind, row.namespace, row.name))}>
                  <Table.Td>
                    <a href={link.search(row.kind, row.namespace, row.name)}>{row.name}</a>
                    <Text size="xs" c="dimmed">{row.namespace}</Text>
                  </Table.Td>
                  <Table.Td><StateBadge state={row.state} /></Table.Td>
                  <Table.Td>{row.algorithm}</Table.Td>
                  <Table.Td><Trials search={row} /></Table.Td>
                  <Table.Td>
                    {row.best
                      ? <><Text size="sm" fw={600}>{row.metric} {number(row.best.value!)}</Text><Text size="xs" c="dimmed" lineClamp={1}>{assignments(row.best.parameters)}</Text></>
                      : <Text size="sm" c="dimmed">–</Text>}
                  </Table.Td>
                  <Table.Td>{seconds(row.started_at, row.ended_at, now)}</Table.Td>
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

const WIDTH = 640
const HEIGHT = 220
const LEFT = 58

/** The objective of each trial in their order, and the best up to each of them. */
function History({ search, trials, chosen, onChoose }: { search: Search; trials: Trial[]; chosen?: string; onChoose: (name?: string) => void }) {
  const points = trials.flatMap((trial, index) => (trial.value === null ? [] : [{ trial, index, value: trial.value }]))
  if (points.length === 0) return <Text size="sm" c="dimmed">No trial has reported {search.metric} yet.</Text>
  const values = points.map((point) => point.value)
  const [low, high] = [Math.min(...values), Math.max(...values)]
  const spread = high - low || Math.abs(high) || 1
  const x = (index: number) => LEFT + 8 + (index / Math.max(trials.length - 1, 1)) * (WIDTH - LEFT - 24)
  const y = (value: number) => 12 + (1 - (value - low) / spread) * (HEIGHT - 40)
  let best: number | undefined
  const steps = points.map((point) => {
    best = best === undefined ? point.value : search.maximize ? Math.max(best, point.value) : Math.min(best, point.value)
    return { index: point.index, value: best }
  })
  const path = steps.map((step, at) => (at ? `H${x(step.index)}V${y(step.value)}` : `M${x(step.index)},${y(step.value)}`)).join('')
  const ticks = high === low ? [low] : [0, 1, 2, 3].map((tick) => low + (tick / 3) * spread)
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width="100%" role="img" aria-label={`${search.metric} of ${points.length} trials, best ${number(best!)}`} data-testid="history">
      {ticks.map((tick) => (
        <g key={tick}>
          <line x1={LEFT} x2={WIDTH - 8} y1={y(tick)} y2={y(tick)} stroke="var(--line)" />
          <text x={LEFT - 8} y={y(tick) + 4} fontSize={11} textAnchor="end" fill="var(--quiet)">{number(Number(tick.toPrecision(3)))}</text>
        </g>
      ))}
      <text x={(LEFT + WIDTH) / 2} y={HEIGHT - 4} fontSize={11} textAnchor="middle" fill="var(--quiet)">trials in the order in which they began; the line is the best so far</text>
      <path d={path} fill="none" stroke="var(--mantine-primary-color-filled)" strokeWidth={2} />
      {points.map(({ trial, index, value }) => (
        <circle
          key={trial.name}
          cx={x(index)}
          cy={y(value)}
          r={trial.name === chosen ? 6 : 4}
          fill={trial.name === search.best?.name ? 'var(--mantine-primary-color-filled)' : 'var(--mantine-color-body)'}
          stroke="var(--mantine-primary-color-filled)"
          strokeWidth={1.5}
          onPointerEnter={() => onChoose(trial.name)}
          onPointerLeave={() => onChoose(undefined)}
        >
          <title>{`${trial.name}: ${search.metric} ${number(value)}\n${assignments(trial.parameters)}`}</title>
        </circle>
      ))}
    </svg>
  )
}

export function SearchPage({ kind, namespace, name }: { kind: string; namespace: string; name: string }) {
  const found = useQuery({ queryKey: ['searches', kind, namespace, name], queryFn: () => ui.search(kind, namespace, name), refetchInterval: 3000 })
  const [chosen, choose] = useState<string>()
  const now = useNow(found.data ? isActive(found.data.search.state) : false)
  if (found.error) return <Problem error={found.error} />
  if (found.isPending) return <Waiting />
  const { search, trials } = found.data
  const names = [...new Set(trials.flatMap((trial) => Object.keys(trial.parameters)))]
  return (
    <>
      <PageTitle above={<><a className="plain" href="#/tuning">Tuning</a> / {namespace}</>} aside={<StateBadge state={search.state} />}>{name}</PageTitle>
      {search.message && <Box mb="md"><Problem error={new Error(search.message)} title={search.state === 'FAILED' ? 'Why it failed' : 'Why it waits'} /></Box>}
      <Grid gap="lg" mb="lg">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Stack className="surface" p="md" gap="xs">
            <Title order={2} fz={17}>{search.metric}</Title>
            <History search={search} trials={trials} chosen={chosen} onChoose={choose} />
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Stack className="surface" p="md" gap="sm">
            <Title order={2} fz={17}>Best so far</Title>
            {search.best
              ? (
                <>
                  <Group gap={8} align="baseline"><Text fz={26} fw={650} style={{ fontVariantNumeric: 'tabular-nums' }} data-testid="best">{number(search.best.value!)}</Text><Text size="sm" c="dimmed">{search.metric}, {search.maximize ? 'higher' : 'lower'} is better{search.goal === null ? '' : `, goal ${number(search.goal)}`}</Text></Group>
                  {Object.entries(search.best.parameters).map(([parameter, value]) => <Fact key={parameter} name={parameter}><span className="mono">{value}</span></Fact>)}
                </>
              )
              : <Text size="sm" c="dimmed">No trial has ended with a value yet.</Text>}
            <Fact name="Trials"><Trials search={search} /></Fact>
            <Fact name="Algorithm">{search.algorithm}</Fact>
            <Fact name="Duration">{seconds(search.started_at, search.ended_at, now)}</Fact>
          </Stack>
        </Grid.Col>
      </Grid>
      <Title order={2} fz={17} mb="sm">Trials</Title>
      <ScrollArea className="surface">
        <Table verticalSpacing={7} horizontalSpacing="md" miw={640} data-testid="trials">
          <Table.Thead>
            <Table.Tr>
              <Table.Th>Trial</Table.Th><Table.Th w={156}>State</Table.Th><Table.Th>{search.metric}</Table.Th>
              {names.map((parameter) => <Table.Th key={parameter}>{parameter}</Table.Th>)}
              <Table.Th w={110}>Duration</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {trials.map((trial) => (
              <Table.Tr key={trial.name} bg={trial.name === chosen ? 'var(--mantine-primary-color-light)' : undefined} onPointerEnter={() => choose(trial.name)} onPointerLeave={() => choose(undefined)}>
                <Table.Td><span className="mono">{trial.name}</span>{trial.message && <Text size="xs" c="red" lineClamp={2} title={trial.message}>{trial.message}</Text>}</Table.Td>
                <Table.Td><StateBadge state={trial.state} /></Table.Td>
                <Table.Td fw={trial.name === search.best?.name ? 700 : undefined}>{trial.value === null ? '–' : number(trial.value)}</Table.Td>
                {names.map((parameter) => <Table.Td key={parameter}>{short(trial.parameters[parameter] ?? '')}</Table.Td>)}
                <Table.Td>{seconds(trial.started_at, trial.ended_at, now)}</Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </ScrollArea>
    </>
  )
}
